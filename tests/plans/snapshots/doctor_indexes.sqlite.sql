-- tbl_name_1 = 'action_logs'
-- type_1 = 'index'
SELECT sqlite_master.name, 1 AS is_valid
FROM sqlite_master
WHERE sqlite_master.type = :type_1
AND sqlite_master.tbl_name = :tbl_name_1;

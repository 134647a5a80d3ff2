-- attnum_1 = 0
-- has_column_privilege_1 = 'SELECT'
-- has_column_privilege_2 = 'INSERT'
-- has_column_privilege_3 = 'UPDATE'
-- quote_ident_1 = 'action_logs'
SELECT pg_attribute.attname AS name, has_column_privilege(pg_attribute.attrelid, pg_attribute.attnum, :has_column_privilege_1::VARCHAR) AS "select", has_column_privilege(pg_attribute.attrelid, pg_attribute.attnum, :has_column_privilege_2::VARCHAR) AS insert, has_column_privilege(pg_attribute.attrelid, pg_attribute.attnum, :has_column_privilege_3::VARCHAR) AS update
FROM pg_attribute
WHERE pg_attribute.attrelid = to_regclass(quote_ident(:quote_ident_1))
AND pg_attribute.attnum > :attnum_1::INTEGER
AND NOT pg_attribute.attisdropped
ORDER BY pg_attribute.attnum;

SELECT count(*) AS count_1
FROM (SELECT action_logs.id AS id
FROM action_logs
WHERE action_logs.status = 'pending'
AND action_logs.type = :type::VARCHAR
AND action_logs.priority = :priority::SMALLINT
AND action_logs.end_at <= now()
ORDER BY action_logs.end_at, action_logs.id
LIMIT :limit::INTEGER) AS due;

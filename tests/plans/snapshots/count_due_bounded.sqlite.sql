-- param_1 = 0
SELECT count(*) AS count_1
FROM (SELECT action_logs.id AS id
FROM action_logs
WHERE action_logs.status = 'pending'
AND action_logs.type = :type
AND action_logs.priority = :priority
AND action_logs.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now')
ORDER BY action_logs.end_at, action_logs.id
LIMIT :limit OFFSET :param_1) AS due;

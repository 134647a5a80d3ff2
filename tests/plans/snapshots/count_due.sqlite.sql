SELECT count(*) AS count_1
FROM action_logs
WHERE action_logs.status = 'pending'
AND action_logs.type = :type
AND action_logs.priority = :priority
AND action_logs.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now');

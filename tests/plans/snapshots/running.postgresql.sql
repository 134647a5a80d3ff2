SELECT action_logs.type, count(*) AS number
FROM action_logs
WHERE action_logs.status = 'claimed' GROUP BY action_logs.type;

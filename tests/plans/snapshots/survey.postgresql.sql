WITH RECURSIVE lane(id) AS
(SELECT (SELECT first.id
FROM action_logs AS first
WHERE first.status = 'pending'
ORDER BY first.type, first.priority, first.end_at, first.id
LIMIT 1) AS id
UNION ALL SELECT (SELECT following.id
FROM action_logs AS following
WHERE following.status = 'pending'
AND (following.type, following.priority) > (here.type, here.priority)
ORDER BY following.type, following.priority, following.end_at, following.id
LIMIT 1) AS anon_1
FROM lane JOIN action_logs AS here ON here.id = lane.id)
SELECT head.type, head.priority, head.end_at, now() AS now
FROM lane JOIN action_logs AS head ON head.id = lane.id
UNION ALL SELECT NULL AS type, NULL AS priority, (SELECT action_logs.lease_expires_at
FROM action_logs
WHERE action_logs.status = 'claimed'
ORDER BY action_logs.lease_expires_at, action_logs.id
LIMIT 1) AS end_at, now() AS now
UNION ALL SELECT action_logs_paused.type, NULL AS priority, NULL AS end_at, now() AS now
FROM action_logs_paused;

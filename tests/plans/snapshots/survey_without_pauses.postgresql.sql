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
UNION ALL SELECT NULL AS type, CASE WHEN ((SELECT keyed.id
FROM action_logs AS keyed
WHERE keyed.ordering_key IS NOT NULL
AND keyed.status IN ('pending', 'claimed')
ORDER BY keyed.ordering_key, keyed.id
LIMIT 1) IS NOT NULL)
THEN 1
ELSE 0 END AS priority, CASE WHEN ((SELECT endless.id
FROM action_logs AS endless
WHERE endless.status = 'claimed'
AND endless.lease_expires_at > '9999-12-30 00:00:00+00'
AND NOT CASE WHEN (substr(endless.claimed_by, 1, 11) = 'deployment:')
THEN true
ELSE false END
ORDER BY endless.lease_expires_at DESC, endless.id DESC
LIMIT 1) IS NOT NULL)
THEN '0001-01-03 00:00:00+00'
ELSE (SELECT CASE WHEN (action_logs.lease_expires_at < '0001-01-03 00:00:00+00')
THEN '0001-01-03 00:00:00+00' WHEN (action_logs.lease_expires_at > '9999-12-30 00:00:00+00')
THEN '9999-12-30 00:00:00+00'
ELSE action_logs.lease_expires_at END AS anon_2
FROM action_logs
WHERE action_logs.status = 'claimed'
ORDER BY action_logs.lease_expires_at, action_logs.id
LIMIT 1) END AS end_at, now() AS now;

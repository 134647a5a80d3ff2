WITH RECURSIVE key(ordering_key) AS
(SELECT (SELECT first_of_key.ordering_key
FROM action_logs AS first_of_key
WHERE first_of_key.ordering_key IS NOT NULL
AND first_of_key.status IN ('pending', 'claimed')
ORDER BY first_of_key.ordering_key, first_of_key.id
LIMIT 1) AS ordering_key
UNION ALL SELECT (SELECT following.ordering_key
FROM action_logs AS following
WHERE following.ordering_key IS NOT NULL
AND following.status IN ('pending', 'claimed')
AND following.ordering_key > key.ordering_key
ORDER BY following.ordering_key, following.id
LIMIT 1) AS anon_1
FROM key
WHERE key.ordering_key IS NOT NULL)
SELECT found.ordering_key, head.id, head.type, head.priority, head.end_at AS end_at, coalesce(head.status = 'pending'
AND head.end_at <= now()
AND NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = found.ordering_key
AND running.status = 'claimed')), false) AS may_run, now() AS now
FROM (SELECT keys.ordering_key AS ordering_key, (SELECT first.id
FROM action_logs AS first
WHERE first.ordering_key = keys.ordering_key
AND first.status IN ('pending', 'claimed')
AND (first.end_at <= now() OR first.claim_count > 0
AND (first.held_until IS NULL OR first.held_until = first.end_at))
ORDER BY first.ordering_key, first.id
LIMIT 1) AS id
FROM (SELECT key.ordering_key AS ordering_key
FROM (SELECT key.ordering_key AS ordering_key
FROM key) AS key
WHERE key.ordering_key IS NOT NULL
LIMIT (SELECT :limit::INTEGER AS anon_2)) AS keys) AS found LEFT OUTER JOIN action_logs AS head ON head.id = found.id;

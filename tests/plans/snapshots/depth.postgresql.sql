SELECT EXISTS (SELECT candidate.id, candidate.ordering_key
FROM action_logs AS candidate
WHERE candidate.status = 'pending'
AND candidate.type = :type_0::VARCHAR
AND candidate.priority = :priority_0::SMALLINT
AND candidate.end_at <= now()
ORDER BY candidate.end_at, candidate.id
LIMIT 1 OFFSET (SELECT :limit::INTEGER * 2 + 500 AS anon_1)) AS is_deep_0, (SELECT count(*) AS count_1
FROM (SELECT candidate.id AS id, candidate.ordering_key AS ordering_key
FROM action_logs AS candidate
WHERE candidate.status = 'pending'
AND candidate.type = :type_0::VARCHAR
AND candidate.priority = :priority_0::SMALLINT
AND candidate.end_at <= now()
ORDER BY candidate.end_at, candidate.id
LIMIT 64) AS sample
WHERE (sample.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = sample.ordering_key
AND running.status = 'claimed'))
AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = sample.ordering_key
AND earlier.id < sample.id
AND earlier.status IN ('pending', 'claimed')
AND (earlier.end_at <= now() OR earlier.claim_count > 0
AND (earlier.held_until IS NULL OR earlier.held_until = earlier.end_at)))))
AND (EXISTS (SELECT candidate.id, candidate.ordering_key
FROM action_logs AS candidate
WHERE candidate.status = 'pending'
AND candidate.type = :type_0::VARCHAR
AND candidate.priority = :priority_0::SMALLINT
AND candidate.end_at <= now()
ORDER BY candidate.end_at, candidate.id
LIMIT 1 OFFSET (SELECT :limit::INTEGER * 2 + 500 AS anon_1)))) AS free_0;

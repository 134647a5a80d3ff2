-- param_1 = 0
SELECT EXISTS (SELECT candidate.id, candidate.ordering_key
FROM action_logs AS candidate
WHERE candidate.status = 'pending'
AND candidate.type = :type_0
AND candidate.priority = :priority_0
AND candidate.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now')
ORDER BY candidate.end_at, candidate.id
LIMIT 1 OFFSET :limit * 2 + 500) AS is_deep_0, (SELECT count(*) AS count_1
FROM (SELECT candidate.id AS id, candidate.ordering_key AS ordering_key
FROM action_logs AS candidate
WHERE candidate.status = 'pending'
AND candidate.type = :type_0
AND candidate.priority = :priority_0
AND candidate.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now')
ORDER BY candidate.end_at, candidate.id
LIMIT 64 OFFSET :param_1) AS sample
WHERE (sample.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = sample.ordering_key
AND running.status = 'claimed'))
AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = sample.ordering_key
AND earlier.id < sample.id
AND earlier.status IN ('pending', 'claimed')
AND (earlier.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') OR earlier.claim_count > 0
AND (earlier.held_until IS NULL OR earlier.held_until = earlier.end_at)))))
AND (EXISTS (SELECT candidate.id, candidate.ordering_key
FROM action_logs AS candidate
WHERE candidate.status = 'pending'
AND candidate.type = :type_0
AND candidate.priority = :priority_0
AND candidate.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now')
ORDER BY candidate.end_at, candidate.id
LIMIT 1 OFFSET :limit * 2 + 500))) AS free_0;

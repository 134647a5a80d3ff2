UPDATE action_logs
SET lease_expires_at=(now() + make_interval(secs => :lease_seconds)), updated_at=now()
FROM unnest((SELECT CAST(:held_id::VARCHAR AS BIGINT[]) AS anon_1), (SELECT CAST(:held_claim_count::VARCHAR AS BIGINT[]) AS anon_2)) AS held(id, claim_count)
WHERE action_logs.id = held.id
AND action_logs.claim_count = held.claim_count
AND (action_logs.status || '') = 'claimed'
AND action_logs.lease_expires_at > now()
RETURNING action_logs.id;

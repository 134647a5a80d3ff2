-- status = 'dead'
UPDATE action_logs
SET status=:status::VARCHAR, lease_expires_at=CAST(NULL AS TIMESTAMP WITH TIME ZONE), errors=CAST(buried.errors AS JSONB), settled_at=now(), updated_at=now()
FROM unnest((SELECT CAST(:buried_id::VARCHAR AS BIGINT[]) AS anon_1), (SELECT CAST(:buried_claim_count::VARCHAR AS BIGINT[]) AS anon_2), (SELECT CAST(:buried_errors::VARCHAR AS TEXT[]) AS anon_3)) AS buried(id, claim_count, errors)
WHERE action_logs.id = buried.id
AND action_logs.claim_count = buried.claim_count
AND (action_logs.status || '') IN ('pending', 'claimed')
RETURNING action_logs.id;

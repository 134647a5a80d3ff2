UPDATE action_logs
SET lease_expires_at=(now() + make_interval(secs => followed.lease_seconds)), run_id=coalesce(followed.run_id, action_logs.run_id), updated_at=now()
FROM unnest((SELECT CAST(:followed_id::VARCHAR AS BIGINT[]) AS anon_1), (SELECT CAST(:followed_claim_count::VARCHAR AS BIGINT[]) AS anon_2), (SELECT CAST(:followed_run_id::VARCHAR AS TEXT[]) AS anon_3), (SELECT CAST(:followed_lease_seconds::VARCHAR AS FLOAT[]) AS anon_4)) AS followed(id, claim_count, run_id, lease_seconds)
WHERE action_logs.id = followed.id
AND action_logs.claim_count = followed.claim_count
AND (action_logs.status || '') = 'claimed'
RETURNING action_logs.id;

SELECT action_logs.id, action_logs.type, action_logs.claim_count, action_logs.fail_count, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by, action_logs.run_id, CASE WHEN (action_logs.claimed_at < '0001-01-03 00:00:00+00')
THEN '0001-01-03 00:00:00+00' WHEN (action_logs.claimed_at > '9999-12-30 00:00:00+00')
THEN '9999-12-30 00:00:00+00'
ELSE action_logs.claimed_at END AS claimed_at, CASE WHEN (action_logs.lease_expires_at < '0001-01-03 00:00:00+00')
THEN '0001-01-03 00:00:00+00' WHEN (action_logs.lease_expires_at > '9999-12-30 00:00:00+00')
THEN '9999-12-30 00:00:00+00'
ELSE action_logs.lease_expires_at END AS lease_expires_at, CASE WHEN (action_logs.lease_expires_at < '0001-01-03 00:00:00+00')
THEN '0001-01-03 00:00:00+00' WHEN (action_logs.lease_expires_at > '9999-12-30 00:00:00+00')
THEN '9999-12-30 00:00:00+00'
ELSE action_logs.lease_expires_at END AS after_at, now() AS now
FROM action_logs
WHERE action_logs.status = 'claimed'
AND CASE WHEN (substr(action_logs.claimed_by, 1, 11) = 'deployment:')
THEN true
ELSE false END
AND (action_logs.lease_expires_at, action_logs.id) > (:after_at::TIMESTAMP WITH TIME ZONE, :after_id::BIGINT)
ORDER BY action_logs.lease_expires_at, action_logs.id
LIMIT (SELECT :limit::INTEGER AS anon_1);

SELECT action_logs.id, action_logs.type, action_logs.claim_count, action_logs.fail_count, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by, action_logs.run_id, action_logs.claimed_at, action_logs.lease_expires_at, action_logs.lease_expires_at AS after_at, now() AS now
FROM action_logs
WHERE action_logs.status = 'claimed'
AND CASE WHEN (substr(action_logs.claimed_by, 1, 11) = 'deployment:')
THEN true
ELSE false END
ORDER BY action_logs.lease_expires_at, action_logs.id
LIMIT (SELECT :limit::INTEGER AS anon_1);

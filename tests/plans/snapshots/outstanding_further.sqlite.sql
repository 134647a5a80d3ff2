-- coalesce_1 = ''
-- param_1 = 0
SELECT action_logs.id, action_logs.type, action_logs.claim_count, action_logs.fail_count, coalesce(CAST(action_logs.errors AS TEXT), :coalesce_1) AS errors, action_logs.claimed_by, action_logs.run_id, action_logs.claimed_at, action_logs.lease_expires_at, action_logs.lease_expires_at AS after_at, strftime('%Y-%m-%d %H:%M:%f', 'now') AS now
FROM action_logs
WHERE action_logs.status = 'claimed'
AND CASE WHEN (substr(action_logs.claimed_by, 1, 11) = 'deployment:')
THEN 1
ELSE 0 END = 1
AND (action_logs.lease_expires_at, action_logs.id) > (:after_at, :after_id)
ORDER BY action_logs.lease_expires_at, action_logs.id
LIMIT :limit OFFSET :param_1;

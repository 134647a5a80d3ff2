SELECT count(*) FILTER (WHERE action_logs.lease_expires_at < now()) AS expired, CASE WHEN (min(action_logs.lease_expires_at) < '0001-01-03 00:00:00+00')
THEN '0001-01-03 00:00:00+00' WHEN (min(action_logs.lease_expires_at) > '9999-12-30 00:00:00+00')
THEN '9999-12-30 00:00:00+00'
ELSE min(action_logs.lease_expires_at) END AS oldest_lease_at, CASE WHEN (min(action_logs.claimed_at) < '0001-01-03 00:00:00+00')
THEN '0001-01-03 00:00:00+00' WHEN (min(action_logs.claimed_at) > '9999-12-30 00:00:00+00')
THEN '9999-12-30 00:00:00+00'
ELSE min(action_logs.claimed_at) END AS oldest_claim_at, now() AS now
FROM action_logs
WHERE action_logs.status = 'claimed';

SELECT count(*) FILTER (WHERE action_logs.lease_expires_at < now()) AS expired, min(action_logs.lease_expires_at) AS oldest_lease_at, min(action_logs.claimed_at) AS oldest_claim_at, now() AS now
FROM action_logs
WHERE action_logs.status = 'claimed';

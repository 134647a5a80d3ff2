-- paused_at_1 = datetime.datetime(1, 1, 3, 0, 0, tzinfo=datetime.timezone.utc)
-- paused_at_2 = datetime.datetime(9999, 12, 30, 0, 0, tzinfo=datetime.timezone.utc)
SELECT action_logs_paused.type, action_logs_paused.reason, CASE WHEN (action_logs_paused.paused_at BETWEEN :paused_at_1::TIMESTAMP WITH TIME ZONE
AND :paused_at_2::TIMESTAMP WITH TIME ZONE)
THEN action_logs_paused.paused_at END AS paused_at
FROM action_logs_paused
ORDER BY action_logs_paused.type;

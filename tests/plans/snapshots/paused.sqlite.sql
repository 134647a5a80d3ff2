SELECT action_logs_paused.type, action_logs_paused.reason, action_logs_paused.paused_at AS paused_at
FROM action_logs_paused
ORDER BY action_logs_paused.type;

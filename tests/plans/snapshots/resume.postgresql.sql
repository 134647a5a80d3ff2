DELETE
FROM action_logs_paused
WHERE action_logs_paused.type = :pattern::VARCHAR
RETURNING action_logs_paused.type;

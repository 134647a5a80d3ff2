UPDATE action_logs_paused
SET reason=:new_reason
WHERE action_logs_paused.type = :pattern;

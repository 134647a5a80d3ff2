UPDATE action_logs_paused
SET reason=:new_reason::VARCHAR
WHERE action_logs_paused.type = :pattern::VARCHAR;

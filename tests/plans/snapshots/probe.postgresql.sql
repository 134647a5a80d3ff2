SELECT pg_notify(:channel::VARCHAR, :payload::VARCHAR) AS pg_notify_1;

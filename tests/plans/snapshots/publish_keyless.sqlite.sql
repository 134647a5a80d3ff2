INSERT INTO action_logs (type, payload, end_at) VALUES (:type, :payload, strftime('%Y-%m-%d %H:%M:%f', 'now'))
RETURNING id;

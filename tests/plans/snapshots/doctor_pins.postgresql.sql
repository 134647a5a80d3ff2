-- concat_1 = ' of '
-- param_1 = 'session'
-- param_2 = 'prepared transaction'
-- param_3 = 'replication slot'
SELECT :param_1::VARCHAR AS kind, CAST(concat(pg_stat_activity.pid, :concat_1::VARCHAR, pg_stat_activity.usename) AS TEXT) AS who, CAST(EXTRACT(epoch
FROM clock_timestamp() - pg_stat_activity.xact_start) AS INTEGER) AS seconds, CAST(coalesce(age(pg_stat_activity.backend_xmin), age(pg_stat_activity.backend_xid)) AS BIGINT) AS transactions
FROM pg_stat_activity
WHERE pg_stat_activity.datname = current_database()
AND pg_stat_activity.pid != pg_backend_pid()
AND coalesce(age(pg_stat_activity.backend_xmin), age(pg_stat_activity.backend_xid)) IS NOT NULL
UNION ALL SELECT :param_2::VARCHAR AS kind, CAST(pg_prepared_xacts.gid AS TEXT) AS who, CAST(EXTRACT(epoch
FROM clock_timestamp() - pg_prepared_xacts.prepared) AS INTEGER) AS seconds, CAST(age(pg_prepared_xacts.transaction) AS BIGINT) AS transactions
FROM pg_prepared_xacts
WHERE pg_prepared_xacts.database = current_database()
UNION ALL SELECT :param_3::VARCHAR AS kind, CAST(pg_replication_slots.slot_name AS TEXT) AS who, CAST(NULL AS INTEGER) AS seconds, CAST(age(pg_replication_slots.xmin) AS BIGINT) AS transactions
FROM pg_replication_slots
WHERE pg_replication_slots.xmin IS NOT NULL;

SELECT cluster.system_identifier, current_database() AS current_database_1, current_schema() AS current_schema_1
FROM pg_control_system() AS cluster;

SELECT sqlite_version() AS version, strftime('%Y-%m-%d %H:%M:%f', 'now') AS now, anon_1.journal_mode
FROM pragma_journal_mode() AS anon_1;

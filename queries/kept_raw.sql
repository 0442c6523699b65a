-- What was left of a run's source without a column in any table, and why.
SELECT run_id, event_type, key, reason, count(*) AS times, min(line) AS first_line, any_value(text) AS for_example
FROM raw_events
GROUP BY run_id, event_type, key, reason
ORDER BY run_id, times DESC, event_type, key, reason

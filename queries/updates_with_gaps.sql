-- Updates with missing rows: what the recorder could not record, and numbers that are skipped.
WITH numbered AS (
    SELECT run_id, update, lag(update) OVER (PARTITION BY run_id ORDER BY update) AS before
    FROM (SELECT DISTINCT run_id, update FROM ppo_updates)
)
SELECT run_id, first_update, last_update, table_name, reason, rows, detail FROM gaps
UNION ALL
SELECT run_id, before + 1, update - 1, 'ppo_updates', 'not_recorded', NULL, NULL FROM numbered WHERE update > before + 1
ORDER BY run_id, first_update, table_name

-- Alarms raised during recording, per rule and phase of the training.
-- param early DOUBLE 0.1 progress at which warmup ends
-- param mid DOUBLE 0.25 progress at which early ends
-- param late DOUBLE 0.75 progress at which mid ends
SELECT
    a.run_id,
    a.rule,
    a.key,
    CASE WHEN p.progress IS NULL THEN 'unknown' WHEN p.progress < $early THEN 'warmup' WHEN p.progress < $mid THEN 'early'
        WHEN p.progress < $late THEN 'mid' ELSE 'late' END AS training_phase,
    count(*) AS alarms,
    min(a.update) AS first_update,
    max(a.in_a_row) AS longest_in_a_row,
    count(*) FILTER (a.sentinel) AS about_a_sentinel
FROM anomalies AS a
LEFT JOIN (SELECT run_id, update, max(progress) AS progress FROM ppo_updates GROUP BY ALL) AS p USING (run_id, update)
GROUP BY a.run_id, a.rule, a.key, training_phase
ORDER BY a.run_id, a.rule, a.key, first_update

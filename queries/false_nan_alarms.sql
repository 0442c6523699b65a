-- Alarms about a NaN by which the trainer marks a value as not meaningful: no fault of the training.
SELECT
    run_id,
    rule,
    count(*) AS alarms,
    count(*) FILTER (sentinel) AS about_a_sentinel,
    min(update) FILTER (NOT coalesce(sentinel, false)) AS first_real_update
FROM anomalies
WHERE rule IN ('numerical_instability', 'ratio_nan_inf', 'nonfinite') OR contains(rule, 'nan')
GROUP BY run_id, rule
ORDER BY run_id, rule

-- How much was clipped in each phase of the training: warmup, early, mid, late.
-- param early DOUBLE 0.1 progress at which warmup ends
-- param mid DOUBLE 0.25 progress at which early ends
-- param late DOUBLE 0.75 progress at which mid ends
SELECT
    run_id,
    CASE WHEN progress IS NULL THEN 'unknown' WHEN progress < $early THEN 'warmup' WHEN progress < $mid THEN 'early'
        WHEN progress < $late THEN 'mid' ELSE 'late' END AS phase,
    count(*) AS updates,
    avg(finite(clip_fraction)) AS clip_fraction,
    max(finite(clip_fraction)) AS clip_fraction_max,
    avg(finite(approx_kl)) AS approx_kl
FROM ppo_updates
GROUP BY run_id, phase
ORDER BY run_id, min(update)

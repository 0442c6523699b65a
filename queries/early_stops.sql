-- How often the epochs stopped early (target_kl), and how many of the planned ones were completed.
SELECT
    run_id,
    count(*) AS updates,
    count(*) FILTER (stopped_early) AS stopped,
    stopped / nullif(count(stopped_early), 0) AS stopped_fraction,
    avg(epochs) AS epochs,
    any_value(epochs_planned) AS epochs_planned,
    min(update) FILTER (stopped_early) AS first_update,
    avg(finite(approx_kl)) FILTER (stopped_early) AS approx_kl_stopped,
    any_value(target_kl) AS target_kl
FROM ppo_updates
GROUP BY run_id
ORDER BY stopped_fraction DESC NULLS LAST, run_id

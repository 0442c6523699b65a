-- How the modules (seeds) ended and how long they lived, per blueprint.
SELECT
    run_id,
    blueprint,
    coalesce(ended, 'open') AS ended,
    count(*) AS modules,
    median(epochs_total) AS epochs_median,
    max(epochs_total) AS epochs_max,
    avg(finite(improvement)) AS improvement_mean,
    sum(gates_failed) AS gates_failed
FROM seed_lifecycle
GROUP BY run_id, blueprint, coalesce(ended, 'open')
ORDER BY run_id, modules DESC, blueprint, ended

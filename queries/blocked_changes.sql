-- Changes to the networks that were proposed but not carried out, by operation and reason.
SELECT
    run_id,
    operation,
    count(*) AS proposed,
    count(*) FILTER (approved) AS approved,
    count(*) FILTER (committed) AS committed,
    count(*) FILTER (approved AND NOT committed) AS approved_not_committed,
    string_agg(DISTINCT blocked_factor, ', ' ORDER BY blocked_factor) AS blocked_for
FROM morphology_log
GROUP BY run_id, operation
ORDER BY run_id, operation

-- Which actions, environments or heads the worst transitions have in common.
-- param at_least DOUBLE 1.5 transitions count if their ratio, or its inverse, is at least this
SELECT
    run_id,
    head,
    action,
    count(*) AS transitions,
    count(DISTINCT update) AS updates,
    count(DISTINCT env) AS envs,
    max(nullif(ratio, 'nan')) AS ratio_max,
    min(nullif(ratio, 'nan')) AS ratio_min
FROM exemplars
WHERE scope = 'update' AND (abs(log_ratio) >= ln($at_least) OR NOT isfinite(log_ratio))
GROUP BY run_id, head, action
ORDER BY transitions DESC, run_id, head, action

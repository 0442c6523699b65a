-- The first NaN or infinity of each run, in each quantity.
WITH counts AS (
    SELECT run_id, update, 'ppo_updates' AS table_name, unnest(['log_ratio', 'ratio', 'advantage', 'value', 'return',
            'entropy', 'grad_norm', 'rollout']) AS what,
        unnest([log_ratio_nan + log_ratio_posinf + log_ratio_neginf, ratio_nonfinite,
            advantage_nan + advantage_posinf + advantage_neginf, value_nan + value_posinf + value_neginf,
            return_nan + return_posinf + return_neginf, entropy_nan + entropy_posinf + entropy_neginf,
            grad_norm_nonfinite, rollout_nonfinite]) AS n
    FROM ppo_updates
    UNION ALL
    SELECT run_id, update, 'gradient_layers', layer, grad_nan + grad_posinf + grad_neginf FROM gradient_layers
    UNION ALL
    SELECT run_id, update, 'nonfinite_fields', unnest(nonfinite_fields), 1 FROM ppo_updates
)
SELECT run_id, table_name, what, min(update) AS first_update, count(DISTINCT update) AS updates,
    sum(n) AS nonfinite_values
FROM counts
WHERE n > 0
GROUP BY run_id, table_name, what
ORDER BY run_id, first_update, table_name, what

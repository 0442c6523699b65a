-- Layers whose gradients died: zero in nearly every element, or none at all.
-- param zero_share DOUBLE 0.99 share of zero elements from which on a gradient is dead
SELECT
    run_id,
    layer,
    count(DISTINCT update) AS updates,
    count(DISTINCT update) FILTER (dead OR zero_share >= $zero_share) AS updates_dead,
    min(update) FILTER (dead OR zero_share >= $zero_share) AS first_update,
    max(zero_share) AS zero_share_max,
    avg(finite(grad_norm)) AS grad_norm
FROM layers
GROUP BY run_id, layer
HAVING updates_dead > 0
ORDER BY updates_dead DESC, run_id, layer

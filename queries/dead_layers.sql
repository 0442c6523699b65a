-- Layers whose gradients died: zero in nearly every element, or absent.
-- param zero_fraction DOUBLE 0.99 fraction of zero elements at which a gradient counts as dead
SELECT
    run_id,
    layer,
    count(DISTINCT update) AS updates,
    count(DISTINCT update) FILTER (dead OR zero_fraction >= $zero_fraction) AS updates_dead,
    min(update) FILTER (dead OR zero_fraction >= $zero_fraction) AS first_update,
    max(zero_fraction) AS zero_fraction_max,
    avg(finite(grad_norm)) AS grad_norm
FROM layers
GROUP BY run_id, layer
HAVING updates_dead > 0
ORDER BY updates_dead DESC, run_id, layer

// Whether ranks can be told apart, as metabench/analysis/rankings.py and stats.py have it: Friedman's
// test and Nemenyi's critical difference, a block a problem.

const ALPHA = 0.05;
const FEWEST_PROBLEMS = 6;
const FEWEST_METHODS = 3;

/** The upper part of the incomplete gamma function, of 1, at a = half a whole number. */
function gammaUpper(a, x) {
  if (x <= 0) return 1;
  let log = a % 1 ? Math.log(Math.PI) / 2 : 0; // of gamma(1 / 2) or gamma(1)
  for (let k = a % 1 || 1; k < a; k++) log += Math.log(k);
  const scale = Math.exp(a * Math.log(x) - x - log);
  if (x < a + 1) {
    let term = 1 / a;
    let total = term;
    for (let k = a + 1; term > 1e-17 * total; k++) total += (term *= x / k);
    return 1 - scale * total;
  }
  // Lentz's continued fraction.
  let b = x + 1 - a;
  let c = 1e300;
  let d = 1 / b;
  let h = d;
  for (let i = 1; i < 500; i++) {
    b += 2;
    const an = i * (a - i);
    d = 1 / (an * d + b);
    c = b + an / c;
    h *= d * c;
    if (Math.abs(d * c - 1) < 1e-15) break;
  }
  return scale * h;
}

/** How probable a chi-squared of so much or more is. */
const chiSquaredAbove = (x, freedom) => gammaUpper(freedom / 2, x / 2);

const normalBelow = (z) => {
  const tail = gammaUpper(0.5, (z * z) / 2) / 2;
  return z > 0 ? 1 - tail : tail;
};

/** How probable a range of so much or less is, of k standard normal numbers. */
function rangeBelow(q, k) {
  const step = 0.05;
  let total = 0;
  for (let z = -8; z <= 8; z += step) {
    const inside = normalBelow(z) - normalBelow(z - q);
    total += Math.exp((-z * z) / 2) * inside ** (k - 1);
  }
  return (k * step * total) / Math.sqrt(2 * Math.PI);
}

const quantiles = new Map();

/** The range that k standard normal numbers exceed in 5 % of draws. */
function rangeQuantile(k) {
  if (!quantiles.has(k)) {
    let [low, high] = [0, 20];
    while (high - low > 1e-9) {
      const middle = (low + high) / 2;
      if (rangeBelow(middle, k) < 1 - ALPHA) low = middle;
      else high = middle;
    }
    quantiles.set(k, low);
  }
  return quantiles.get(k);
}

/** Nemenyi's: two of k mean ranks over n problems differ where they lie further apart. */
const criticalDifference = (k, n) =>
  (rangeQuantile(k) / Math.SQRT2) * Math.sqrt((k * (k + 1)) / (6 * n));

/** The tests of `places` [problem][method], ranks that ties share; null where there are too few to
 * test. `better`: of each method, those that it is shown to be worse than. */
function tested(places) {
  const n = places.length;
  const k = n ? places[0].length : 0;
  if (n < FEWEST_PROBLEMS || k < FEWEST_METHODS) return null;
  const sums = places[0].map((_, j) => sum(places.map((of) => of[j])));
  const tied = sum(places.map((of) => {
    const counts = new Map();
    for (const rank of of) counts.set(rank, (counts.get(rank) ?? 0) + 1);
    return sum([...counts.values()].map((c) => c ** 3 - c));
  }));
  const scale = 1 - tied / (n * k * (k * k - 1));
  const statistic = scale
    ? ((12 / (n * k * (k + 1))) * sum(sums.map((s) => s * s)) - 3 * n * (k + 1)) / scale : 0;
  const p = scale ? chiSquaredAbove(statistic, k - 1) : 1;
  const critical = criticalDifference(k, n);
  const means = sums.map((s) => s / n);
  const better = means.map((rank) => (p < ALPHA
    ? means.flatMap((other, j) => (rank - other > critical ? [j] : [])) : []));
  return { statistic, freedom: k - 1, p, critical, better };
}

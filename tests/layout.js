// What of a page is hard to read: pixels by which it scrolls sideways, and elements that stand
// outside of the window (but in a box that scrolls), that have letters below 11 pixels, or contrast
// below 4.5 (WCAG 2.2, 1.4.3).
const inside = (e) => !e.closest(".scroll, .unseen, pre");
const seen = [...document.querySelectorAll("body *")].filter((e) =>
  e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) &&
  !e.closest(".unseen, .segments input, .button input"));
const outside = (box) => box.right > innerWidth + 1 || box.left < -1;
const beyond = seen.filter((e) => inside(e) && outside(e.getBoundingClientRect()));
const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
const size = (e) => parseFloat(getComputedStyle(e).fontSize);
const small = seen.filter((e) => own(e) && !e.matches(".arrow") && size(e) < 11);
const light = (c) => {
  const [r, g, b] = c.map((v) => v / 255).map((v) =>
    v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const parse = (text) => text.match(/[\d.]+/g).map(Number);
const paper = (e) => {
  let layers = [];
  for (; e; e = e.parentElement) {
    const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
    layers.push([r, g, b, a]);
    if (a === 1) break;
  }
  return layers.reverse().reduce((under, [r, g, b, a]) =>
    [r, g, b].map((v, i) => a * v + (1 - a) * under[i]), [255, 255, 255]);
};
const contrast = (e) => {
  const style = getComputedStyle(e);
  const [a, b] = [light(parse(e.closest("svg") ? style.fill : style.color)), light(paper(e))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
};
const faint = seen.filter((e) => own(e) && contrast(e) < 4.5);
const name = (e) => `${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`;
const page = document.documentElement;
return [page.scrollWidth - page.clientWidth, beyond.map(name), small.map(name),
  faint.map((e) => `${name(e)}: ${contrast(e).toFixed(1)}`)];

// Returns of every visible text the ratio of its contrast (WCAG 2) to what lies behind it.
() => {
  const parse = (text) => {
    const [red, green, blue, alpha = 1] = text.match(/[\d.]+/g).map(Number);
    return [red, green, blue, alpha];
  };
  const over = (top, below) =>
    [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
  const luminance = (color) => {
    const [red, green, blue] = color.slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(parse(getComputedStyle(e).backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const found = [];
  const judge = (color, behind, text) => {
    const both = [luminance(over(color, behind)), luminance(behind)].sort((a, b) => b - a);
    found.push({ text: text.trim().slice(0, 40), ratio: (both[0] + 0.05) / (both[1] + 0.05) });
  };

  document.querySelectorAll("details").forEach((details) => (details.open = true));
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (walker.currentNode.data.trim() && !element.closest("svg")) {
      judge(parse(getComputedStyle(element).color), ground(element), walker.currentNode.data);
    }
  }
  for (const svg of document.querySelectorAll("svg")) {
    svg.scrollIntoView({ behavior: "instant", block: "center" });
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      const shapes = document
        .elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2)
        .filter((e) => e.closest("svg") === svg && e !== svg && e.tagName !== "text")
        .filter((e) => getComputedStyle(e).fill !== "none");
      const behind = shapes.reverse().reduce((below, shape) => {
        const style = getComputedStyle(shape);
        const fill = parse(style.fill);
        fill[3] *= Number(style.fillOpacity) * Number(style.opacity);
        return over(fill, below);
      }, ground(svg));
      judge(parse(getComputedStyle(text).fill), behind, text.textContent);
    }
  }
  return found;
}

// What a test looks for in a page. Loaded before the page itself.

window.looking = {
  // What the page's content security policy forbade.
  violations: [],

  // Elements that stick out of the window or of their own box.
  overflowing() {
    return [...document.querySelectorAll("body *")]
      .filter((node) => {
        const box = node.getBoundingClientRect();
        const style = getComputedStyle(node);
        if (!box.width || style.position === "absolute" || node.closest(".visually-hidden, svg")) return false;
        const cut = node.scrollWidth > node.clientWidth + 1 && style.overflowX === "visible"
          && style.display !== "inline" && node.clientWidth > 0;
        return box.right > innerWidth + 0.5 || box.left < -0.5 || cut;
      })
      .map((node) => `${node.tagName} ${node.className} ${node.textContent.slice(0, 40)}`);
  },

  // Text whose contrast with what is behind it is below 4.5 : 1 (WCAG 2.2, 1.4.3).
  lowContrast() {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      return [r, g, b, a / 255];
    };
    const light = ([r, g, b]) => {
      const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = (node) => {
      for (let at = node; at; at = at.parentElement) {
        const color = rgba(getComputedStyle(at).backgroundColor);
        if (color[3] > 0.99) return color;
      }
      return [255, 255, 255, 1];
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const bad = new Set();
    while (walker.nextNode()) {
      const node = walker.currentNode.parentElement;
      if (!walker.currentNode.textContent.trim() || !node.checkVisibility() || node.closest(".visually-hidden, .skip, noscript")) continue;
      const style = getComputedStyle(node);
      const color = rgba(node.closest("svg") ? style.fill : style.color);
      const [a, b] = [light(color), light(behind(node))].sort((x, y) => y - x);
      const ratio = (a + 0.05) / (b + 0.05);
      if (ratio < 4.5) bad.add(`${ratio.toFixed(2)} ${node.tagName}.${node.className.baseVal ?? node.className} ${walker.currentNode.textContent.trim().slice(0, 30)}`);
    }
    return [...bad];
  },

  // What a screen reader could not make sense of.
  nameless() {
    const named = (node) => node.getAttribute("aria-label") || node.getAttribute("aria-labelledby")
      || node.labels?.length || node.textContent.trim();
    const wrong = [...document.querySelectorAll("button, input, textarea, a, meter, [role=group], [role=img], section, dialog")]
      .filter((node) => !named(node)).map((node) => `nameless ${node.outerHTML.slice(0, 80)}`);
    const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
    wrong.push(...ids.filter((id, at) => ids.indexOf(id) !== at).map((id) => `twice: ${id}`));
    for (const node of document.querySelectorAll("[aria-labelledby]"))
      if (!document.getElementById(node.getAttribute("aria-labelledby"))) wrong.push(`nothing labels ${node.id}`);
    for (const node of document.querySelectorAll("svg"))
      if (!node.closest("[aria-hidden=true]") && node.getAttribute("role") !== "img") wrong.push("a picture without words");
    for (const name of ["header", "main", "footer", "h1", "nav"])
      if (document.querySelectorAll(name).length !== 1) wrong.push(`not one ${name}`);
    let level = 0;
    for (const node of document.querySelectorAll("h1, h2, h3")) {
      if (!node.checkVisibility()) continue;
      const next = Number(node.tagName[1]);
      if (next > level + 1) wrong.push(`${node.textContent} skips a level`);
      level = next;
    }
    if (!document.documentElement.lang) wrong.push("no language");
    return wrong;
  },

  // Targets too small for a finger (WCAG 2.2, 2.5.8).
  small() {
    return [...document.querySelectorAll("button, .segments label")]
      .filter((node) => node.checkVisibility())
      .map((node) => [node.getBoundingClientRect(), node.textContent])
      .filter(([box]) => box.width < 24 || box.height < 24)
      .map(([box, text]) => `${text}: ${box.width} x ${box.height}`);
  },
};

addEventListener("securitypolicyviolation", (event) => {
  window.looking.violations.push(`${event.violatedDirective}: ${event.blockedURI}`);
});

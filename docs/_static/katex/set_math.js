// Sets the equations of a page by KaTeX; Sphinx includes this file where there are some (mathjax_path in conf.py).
(function () {
  const folder = document.currentScript.src.replace(/[^/]*$/, "");
  const add = (tag, attributes) => document.head.appendChild(Object.assign(document.createElement(tag), attributes));
  add("link", { rel: "stylesheet", href: folder + "katex.min.css" });
  const set = () =>
    document.querySelectorAll(".math").forEach((element) => {
      const tex = element.textContent.trim().replace(/^\\[([]|\\[)\]]$/g, "");
      katex.render(tex, element, { displayMode: element.tagName === "DIV", throwOnError: false });
    });
  add("script", { src: folder + "katex.min.js", onload: set });
})();

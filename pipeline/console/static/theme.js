// Before the page is drawn: the theme that was chosen, else the system's.
"use strict";
(() => {
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const follow = () => {
    if (!root.dataset.chosenTheme) root.dataset.bsTheme = system.matches ? "dark" : "light";
  };
  follow();
  system.addEventListener("change", follow);
})();

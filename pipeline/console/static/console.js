// Live pages, the theme, and uploads. Everything else works without this.
"use strict";

// --- theme
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme-button");
  const show = () => {
    button.textContent = root.dataset.bsTheme === "dark" ? "Light theme" : "Dark theme";
  };
  show();
  button.hidden = false;
  button.addEventListener("click", () => {
    const theme = root.dataset.bsTheme === "dark" ? "light" : "dark";
    root.dataset.bsTheme = theme;
    root.dataset.chosenTheme = theme;
    document.cookie = `ryzanstein_theme=${theme}; path=/console; max-age=31536000; samesite=lax`;
    show();
  });
})();

// --- moments: as written, and in the zone of the browser
const showZones = (within) => {
  within.querySelectorAll("time[datetime]").forEach((element) => {
    element.title = new Date(element.dateTime).toLocaleString();
  });
};
showZones(document);

// --- live pages: the same page again, and of it what is marked
(() => {
  const main = document.getElementById("main");
  const note = document.getElementById("refresh-note");
  let timer = 0;

  const focusAgain = (element, id, href) => {
    const found = id ? document.getElementById(id) : href && element.querySelector(`a[href="${CSS.escape(href)}"]`);
    if (found) found.focus({ preventScroll: true });
  };

  const take = (fresh) => {
    document.querySelectorAll("[data-live][id]").forEach((element) => {
      const other = fresh.getElementById(element.id);
      if (!other || other.innerHTML === element.innerHTML) return;
      const focused = element.contains(document.activeElement) ? document.activeElement : null;
      element.innerHTML = other.innerHTML;
      showZones(element);
      if (focused) focusAgain(element, focused.id, focused.getAttribute("href"));
    });
    main.dataset.refresh = fresh.getElementById("main").dataset.refresh;
  };

  const look = async () => {
    if (document.hidden) return plan();
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (answer.redirected && new URL(answer.url).pathname !== location.pathname) {
        note.textContent = "This page is no longer live. Load it again.";
        return;
      }
      if (answer.ok) {
        take(new DOMParser().parseFromString(await answer.text(), "text/html"));
        note.textContent = "";
      } else {
        note.textContent = "The service does not answer as it should; trying again.";
      }
    } catch {
      note.textContent = "The service can't be reached; trying again.";
    }
    plan();
  };

  const plan = () => {
    clearTimeout(timer);
    const seconds = Number(main.dataset.refresh);
    if (seconds > 0) timer = setTimeout(look, seconds * 1000);
  };
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && Number(main.dataset.refresh) > 0) look();
  });
  plan();
})();

// --- questions before what can't be undone
document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

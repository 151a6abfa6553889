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
  // The system's may change too.
  new MutationObserver(show).observe(root, { attributeFilter: ["data-bs-theme"] });
  button.hidden = false;
  button.addEventListener("click", () => {
    const theme = root.dataset.bsTheme === "dark" ? "light" : "dark";
    root.dataset.bsTheme = theme;
    root.dataset.chosenTheme = theme;
    document.cookie = `ryzanstein_theme=${theme}; path=/console; max-age=31536000; samesite=lax`;
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
  // A page that nobody touches keeps no session alive, however often it looks.
  let isTouched = false;
  for (const name of ["pointerdown", "keydown", "wheel"]) {
    document.addEventListener(name, () => (isTouched = true), { passive: true });
  }

  // What had the focus is gone; what takes its place is known by its id, its link or its form.
  const focusAgain = (element, lost) => {
    const action = lost.form && lost.form.getAttribute("action");
    const is = (other) =>
      lost.id
        ? other.id === lost.id
        : lost.hasAttribute("href")
          ? other.getAttribute("href") === lost.getAttribute("href")
          : Boolean(action) && Boolean(other.form) && other.form.getAttribute("action") === action;
    const found = [...element.querySelectorAll("a, button, input, select, [tabindex]")].find(
      (other) => other.tagName === lost.tagName && other.type !== "hidden" && is(other),
    );
    if (found) found.focus({ preventScroll: true });
  };

  const take = (fresh) => {
    document.querySelectorAll("[data-live][id]").forEach((element) => {
      const other = fresh.getElementById(element.id);
      if (!other || other.innerHTML === element.innerHTML) return;
      const focused = element.contains(document.activeElement) ? document.activeElement : null;
      element.innerHTML = other.innerHTML;
      showZones(element);
      if (focused) focusAgain(element, focused);
    });
    main.dataset.refresh = fresh.getElementById("main").dataset.refresh;
  };

  const look = async () => {
    if (document.hidden) return plan();
    try {
      const headers = { accept: "text/html", ...(isTouched ? {} : { "x-by-itself": "1" }) };
      isTouched = false;
      const answer = await fetch(location.href, { headers });
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

// --- uploads: dropped or chosen, with progress; the answer is the page that one is sent to
(() => {
  const form = document.querySelector("form[data-upload]");
  if (!form) return;
  const drop = document.getElementById("drop");
  const input = document.getElementById("file");
  const state = document.getElementById("upload-state");
  const bar = document.getElementById("upload-progress");
  const button = form.querySelector("button");

  const refuse = (message) => {
    state.textContent = message;
    bar.hidden = true;
    button.disabled = false;
  };

  const send = () => {
    const file = input.files[0];
    if (!file) return;
    if (file.size > Number(form.dataset.mostBytes)) return refuse("This file is too large. Split it.");
    const request = new XMLHttpRequest();
    request.open("POST", form.action);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) bar.firstElementChild.value = (100 * event.loaded) / event.total;
    });
    request.addEventListener("load", () => {
      if (request.status === 200 && request.responseURL !== form.action) {
        location.assign(request.responseURL);
        return;
      }
      const page = new DOMParser().parseFromString(request.responseText, "text/html");
      const alert = page.querySelector("[role=alert]");
      refuse(alert ? alert.textContent : "The file was refused.");
    });
    request.addEventListener("error", () => refuse("The upload was interrupted. Try again."));
    button.disabled = true;
    bar.hidden = false;
    state.textContent = `Sending ${file.name} …`;
    request.send(new FormData(form));
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("is-over");
    });
  }
  for (const name of ["dragleave", "drop"]) {
    drop.addEventListener(name, () => drop.classList.remove("is-over"));
  }
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length !== 1) return refuse("Drop one file at a time.");
    input.files = event.dataTransfer.files;
    send();
  });
})();

// Draws what a page says with data-chart, in the colours of the theme; a table beside it says the same in words.
"use strict";
(() => {
  const drawn = [];
  const draw = (element) => {
    const options = JSON.parse(element.dataset.chart);
    const chart = new ApexCharts(element, {
      ...options,
      chart: {
        background: "transparent",
        fontFamily: "inherit",
        toolbar: { show: false },
        animations: { enabled: false },
        ...options.chart,
        nonce: document.body.dataset.nonce,
      },
      theme: { mode: document.documentElement.dataset.bsTheme },
    });
    chart.render();
    drawn.push(chart);
  };
  document.querySelectorAll("[data-chart]").forEach(draw);
  new MutationObserver(() => {
    const mode = document.documentElement.dataset.bsTheme;
    drawn.forEach((chart) => chart.updateOptions({ theme: { mode } }));
  }).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
})();

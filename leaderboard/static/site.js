// The filter of records.html. Without it the page is complete: the field stays hidden.
(function () {
  "use strict";
  var field = document.getElementById("filter");
  var shown = document.getElementById("shown");
  var rows = Array.prototype.slice.call(document.querySelectorAll("#records tbody tr"));
  var texts = rows.map(function (row) { return row.textContent.toLowerCase(); });

  function apply() {
    var words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    var count = 0;
    rows.forEach(function (row, i) {
      var match = words.every(function (word) { return texts[i].indexOf(word) >= 0; });
      row.hidden = !match;
      count += match ? 1 : 0;
    });
    shown.textContent = count + " of " + rows.length;
  }

  field.parentElement.hidden = false;
  field.addEventListener("input", apply);
  apply();
})();

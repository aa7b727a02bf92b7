// Numbers, words and elements of the page.

const short = (value) => String(Number(value.toPrecision(3)));

const signed = (value, digits = 2) =>
  `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

const decided = data.decision.threshold !== null; // else no image is called abnormal or not

function verdict(record) {
  if (!decided) return "not decided";
  if (record.abnormal) return record.flagged ? "found" : "missed";
  return record.flagged ? "false alarm" : "passed";
}

const wrong = (record) => decided && record.abnormal !== record.flagged;
const misses = (record) => wrong(record) || record.elsewhere === true;

function tagsOf(record) {
  const tags = [];
  if (wrong(record)) tags.push([verdict(record), record.abnormal ? "missed" : "alarm"]);
  if (record.elsewhere) tags.push(["looks elsewhere", "elsewhere"]);
  return tags;
}

function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  const { className, ...rest } = options;
  if (className) made.className = className;
  for (const [key, value] of Object.entries(rest)) made[key] = value;
  made.append(...children);
  return made;
}

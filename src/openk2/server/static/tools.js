// The tools that run in this page when the model calls them. Each takes the arguments and returns text, or throws.

const DEMO_WEATHER = {
  athens: [24, "sunny"], beijing: [12, "hazy"], berlin: [9, "cloudy"], cairo: [29, "sunny"], london: [11, "rain"],
  "new york": [14, "windy"], oslo: [3, "snow"], paris: [15, "partly cloudy"], rome: [19, "sunny"],
  tokyo: [17, "light rain"],
};

export function runTool(name, argumentsText) {
  const tool = TOOLS[name];
  if (!tool) throw new Error(`this page has no tool named ${name}`);
  return tool(JSON.parse(argumentsText));
}

const TOOLS = {
  calculate: ({ expression }) => formatNumber(evaluate(String(expression))),
  current_time: ({ timezone }) => currentTime(timezone),
  get_weather: ({ city }) => demoWeather(String(city)),
};

function demoWeather(city) {
  const found = DEMO_WEATHER[city.trim().toLowerCase()];
  if (!found) throw new Error(`no demo weather for ${city}; there is some for ${Object.keys(DEMO_WEATHER).join(", ")}`);
  return `${city}: ${found[0]} degrees Celsius, ${found[1]} (demo data)`;
}

function currentTime(timezone) {
  const timeZone = timezone ? findZone(timezone.trim()) : undefined;
  const format = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "medium", timeZone });
  const weekday = new Intl.DateTimeFormat("en", { weekday: "long", timeZone });
  const now = new Date();
  const zone = timeZone ?? Intl.DateTimeFormat().resolvedOptions().timeZone;
  return `${format.format(now)} ${zone}, ${weekday.format(now)}`;
}

/** A zone's own name in any case (`europe/paris`), or its city alone (`Paris`). */
function findZone(name) {
  if (/^(utc|gmt|z)$/i.test(name)) return "UTC";
  const wanted = name.replaceAll(" ", "_").toLowerCase();
  for (const zone of Intl.supportedValuesOf("timeZone")) {
    const lower = zone.toLowerCase();
    if (lower === wanted || lower.endsWith(`/${wanted}`)) return zone;
  }
  throw new Error(`unknown time zone ${name}; names look like UTC or Europe/Paris`);
}

function formatNumber(value) {
  if (!Number.isFinite(value)) throw new Error("the result is not a finite number");
  return String(Number.isInteger(value) ? value : Number(value.toPrecision(12)));
}

const FUNCTIONS = { abs: Math.abs, sqrt: Math.sqrt, round: Math.round, floor: Math.floor, ceil: Math.ceil,
  sin: Math.sin, cos: Math.cos, tan: Math.tan, exp: Math.exp, log: Math.log, log2: Math.log2, log10: Math.log10,
  min: Math.min, max: Math.max };
const CONSTANTS = { pi: Math.PI, e: Math.E, tau: 2 * Math.PI };
const TOKEN = /\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)|([A-Za-z]\w*)|(\*\*|\/\/|[-+*/%^(),]))/y;

/** The value of an arithmetic expression. A parser rather than eval: the expression is the model's. */
export function evaluate(expression) {
  const tokens = tokenize(expression.replace(/[×·]/g, "*").replace(/÷/g, "/").replace(/−/g, "-"));
  let at = 0;
  const isNext = (...symbols) => symbols.includes(tokens[at]?.symbol);
  const expect = (symbol) => {
    if (!isNext(symbol)) throw new Error(`'${symbol}' is missing in ${expression}`);
    at += 1;
  };

  function sum() {
    let value = product();
    while (isNext("+", "-")) value = tokens[at++].symbol === "+" ? value + product() : value - product();
    return value;
  }
  function product() {
    let value = signed();
    while (isNext("*", "/", "//", "%")) {
      const symbol = tokens[at++].symbol;
      const right = signed();
      if (symbol !== "*" && right === 0) throw new Error("division by zero");
      if (symbol === "*") value *= right;
      else if (symbol === "/") value /= right;
      else if (symbol === "//") value = Math.floor(value / right);
      else value -= right * Math.floor(value / right);
    }
    return value;
  }
  function signed() {
    if (isNext("-")) {
      at += 1;
      return -signed();
    }
    if (isNext("+")) {
      at += 1;
      return signed();
    }
    return power();
  }
  function power() {
    const base = atom();
    if (!isNext("**", "^")) return base;
    at += 1;
    return base ** signed();
  }
  function atom() {
    const token = tokens[at++];
    if (token?.number !== undefined) return token.number;
    if (token?.name !== undefined && isNext("(") && Object.hasOwn(FUNCTIONS, token.name)) {
      at += 1;
      const values = [sum()];
      while (isNext(",")) {
        at += 1;
        values.push(sum());
      }
      expect(")");
      return FUNCTIONS[token.name](...values);
    }
    if (token?.name !== undefined && Object.hasOwn(CONSTANTS, token.name)) return CONSTANTS[token.name];
    if (token?.symbol === "(") {
      const value = sum();
      expect(")");
      return value;
    }
    throw new Error(`${expression} is not an arithmetic expression`);
  }

  const value = sum();
  if (at !== tokens.length) throw new Error(`${expression} is not an arithmetic expression`);
  return value;
}

function tokenize(expression) {
  const tokens = [];
  const text = expression.trim();
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < text.length) {
    const at = TOKEN.lastIndex;
    const match = TOKEN.exec(text);
    if (!match) throw new Error(`cannot read ${text.slice(at)}`);
    if (match[1] !== undefined) tokens.push({ number: Number(match[1]) });
    else if (match[2] !== undefined) tokens.push({ name: match[2].toLowerCase() });
    else tokens.push({ symbol: match[3] });
  }
  return tokens;
}

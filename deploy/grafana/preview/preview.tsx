// Draws ../dashboard.json with the components that Grafana draws it with, from a Prometheus that runs:
//
//   index.html?prometheus=http://127.0.0.1:9090&from=UNIX&to=UNIX
//
// What Grafana's server and its plugins do besides is imitated here, as far as the dashboard needs it: the grid, the step of
// queries, names of series by legendFormat, and the defaults of the panel timeseries.
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import {
  applyFieldOverrides, ConfigOverrideRule, createTheme, DataFrame, dateTime, FieldConfig, FieldConfigOptionsRegistry, FieldType,
  identityOverrideProcessor, rangeUtil, ThemeContext, TimeRange,
} from '@grafana/data';
import { GraphDrawStyle, GraphFieldConfig, LegendDisplayMode, VisibilityMode, VizLegendOptions } from '@grafana/schema';
import { GlobalStyles, PanelChrome, TimeSeries } from '@grafana/ui';
import { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';

interface Panel {
  id: number;
  title: string;
  description?: string;
  type: string;
  gridPos: { h: number; w: number; x: number; y: number };
  fieldConfig: { defaults: FieldConfig; overrides: ConfigOverrideRule[] };
  options: { legend: Partial<VizLegendOptions> };
  targets: { expr: string; legendFormat: string }[];
}

interface Dashboard {
  title: string;
  templating: { list: { name: string; allValue?: string }[] };
  panels: Panel[];
}

const theme = createTheme({ colors: { mode: 'dark' } });
const address = new URLSearchParams(location.search);
const prometheus = address.get('prometheus') ?? location.origin;

// A cell of Grafana's grid, and the space between two.
const columns = 24;
const cell = 30;
const space = 8;

const timeRange = (): TimeRange => {
  const to = dateTime(Number(address.get('to') ?? Date.now() / 1000) * 1000);
  const from = dateTime(Number(address.get('from') ?? to.unix() - 6 * 3600) * 1000);
  return { from, to, raw: { from, to } };
};

// What the panel timeseries takes for granted.
const custom: GraphFieldConfig = {
  drawStyle: GraphDrawStyle.Line, lineWidth: 1, fillOpacity: 0, pointSize: 5, showPoints: VisibilityMode.Auto, spanNulls: false,
};

// registryOf knows the options that a panel sets, each under its path.
function registryOf(panel: Panel): FieldConfigOptionsRegistry {
  const { defaults, overrides } = panel.fieldConfig;
  const ids = new Set(overrides.flatMap((rule) => rule.properties.map((property) => property.id)));
  Object.keys(defaults).forEach((id) => id !== 'custom' && ids.add(id));
  Object.keys(defaults.custom).forEach((id) => ids.add(`custom.${id}`));
  const never = () => null;
  return new FieldConfigOptionsRegistry(() =>
    [...ids].map((id) => ({
      id, name: id, path: id.replace(/^custom\./, ''), isCustom: id.startsWith('custom.'), process: identityOverrideProcessor,
      shouldApply: () => true, editor: never, override: never,
    })),
  );
}

interface Series {
  metric: Record<string, string>;
  values: [number, string][];
}

// withAll gives each variable the value that stands for all.
const withAll = (expr: string) =>
  dashboard.templating.list.reduce((text, variable) => text.replaceAll('$' + variable.name, variable.allValue ?? '.*'), expr);

// query asks for what Grafana would ask for: a point at each multiple of the step.
async function query(expr: string, range: TimeRange, step: number): Promise<Series[]> {
  const [start, end] = [range.from, range.to].map((at) => Math.floor(at.unix() / step) * step);
  const answer = await fetch(`${prometheus}/api/v1/query_range?` + new URLSearchParams({ query: expr, start: `${start}`, end: `${end}`, step: `${step}` }));
  const body = await answer.json();
  if (body.status !== 'success') {
    throw new Error(`${body.errorType}: ${body.error}`);
  }
  return body.data.result;
}

const nameOf = (format: string, metric: Record<string, string>) =>
  format.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, label) => metric[label] ?? '');

const frameOf = (series: Series, legendFormat: string, step: number): DataFrame => ({
  length: series.values.length,
  fields: [
    { name: 'Time', type: FieldType.time, config: { interval: step * 1000 }, values: series.values.map(([at]) => at * 1000) },
    {
      name: 'Value', type: FieldType.number, labels: series.metric, config: { displayNameFromDS: nameOf(legendFormat, series.metric) },
      values: series.values.map(([, text]) => (Number.isFinite(Number(text)) ? Number(text) : null)),
    },
  ],
});

async function framesOf(panel: Panel, range: TimeRange, width: number): Promise<DataFrame[]> {
  const step = rangeUtil.calculateInterval(range, width, '15s').intervalMs / 1000;
  const found = await Promise.all(
    panel.targets.map(async (target) => (await query(withAll(target.expr), range, step)).map((series) => frameOf(series, target.legendFormat, step))),
  );
  return applyFieldOverrides({
    data: found.flat(), fieldConfig: panel.fieldConfig, fieldConfigRegistry: registryOf(panel), theme, timeZone: 'utc',
    replaceVariables: (text) => text,
  });
}

function Graph({ panel, range, width, height }: { panel: Panel; range: TimeRange; width: number; height: number }) {
  const [frames, setFrames] = useState<DataFrame[]>();
  const [problem, setProblem] = useState('');
  useEffect(() => {
    framesOf(panel, range, width).then(setFrames, (error) => setProblem(String(error)));
  }, [panel, range, width]);
  if (panel.type !== 'timeseries') {
    return <Message text={`no preview of panels of type ${panel.type}`} />;
  }
  if (problem || frames?.length === 0) {
    return <Message text={problem || (panel.fieldConfig.defaults.noValue ?? 'No data')} />;
  }
  const legend = { showLegend: true, displayMode: LegendDisplayMode.List, placement: 'bottom' as const, calcs: [], ...panel.options.legend };
  return frames && <TimeSeries frames={frames} timeRange={range} timeZone="utc" width={width} height={height} legend={legend} />;
}

const Message = ({ text }: { text: string }) => (
  <div className="message" style={{ display: 'grid', placeItems: 'center', height: '100%', color: theme.colors.text.secondary }}>{text}</div>
);

function Page({ dashboard, range }: { dashboard: Dashboard; range: TimeRange }) {
  const column = (document.documentElement.clientWidth - space) / columns;
  const rows = Math.max(...dashboard.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <h1 style={{ fontSize: 18, margin: '12px 16px' }}>
        {dashboard.title}
        <small style={{ color: theme.colors.text.secondary, marginLeft: 16 }}>
          {range.from.toISOString().slice(0, 19)} to {range.to.toISOString().slice(0, 19)} UTC
        </small>
      </h1>
      <div style={{ position: 'relative', height: rows * (cell + space) }}>
        {dashboard.panels.map((panel) => {
          const { h, w, x, y } = panel.gridPos;
          return (
            <div key={panel.id} className="panel" style={{ position: 'absolute', left: space + x * column, top: y * (cell + space) }}>
              <PanelChrome title={panel.title} description={panel.description} width={w * column - space} height={h * (cell + space) - space}>
                {(width, height) => <Graph panel={panel} range={range} width={width} height={height} />}
              </PanelChrome>
            </div>
          );
        })}
      </div>
    </ThemeContext.Provider>
  );
}

const dashboard: Dashboard = await (await fetch('../dashboard.json')).json();
for (const panel of dashboard.panels) {
  panel.fieldConfig.defaults = {
    color: { mode: 'palette-classic' }, ...panel.fieldConfig.defaults, custom: { ...custom, ...panel.fieldConfig.defaults.custom },
  };
}
createRoot(document.getElementById('dashboard')!).render(<Page dashboard={dashboard} range={timeRange()} />);

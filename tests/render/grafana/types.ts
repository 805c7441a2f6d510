// What the JSON of a dashboard has to be, of the estate's Grafana.
import type { Dashboard } from "@grafana/schema";
import type * as bargauge from "./node_modules/@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen";
import type * as heatmap from "./node_modules/@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "./node_modules/@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as statetimeline from "./node_modules/@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type * as table from "./node_modules/@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "./node_modules/@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// JSON has the values of an enumeration and never its members
type Json<T> = 0 extends 1 & T ? unknown
  : T extends string ? `${T}`
  : T extends number | boolean | null | undefined ? T
  : T extends readonly (infer E)[] ? Json<E>[]
  : T extends object ? { [K in keyof T]: Json<T[K]> }
  : T;

export type DashboardJson = Json<Dashboard>;

// what a panel does not say has its default
export type Options_bargauge = Partial<Json<bargauge.Options>>;
export type Options_heatmap = Partial<Json<heatmap.Options>>;
export type Options_stat = Partial<Json<stat.Options>>;
export type Options_statetimeline = Partial<Json<statetimeline.Options>>;
export type Options_table = Partial<Json<table.Options>>;
export type Options_timeseries = Partial<Json<timeseries.Options>>;
export type Fields_heatmap = Json<heatmap.FieldConfig>;
export type Fields_statetimeline = Json<statetimeline.FieldConfig>;
export type Fields_table = Partial<Json<table.FieldConfig>>;
export type Fields_timeseries = Json<timeseries.FieldConfig>;

// Three that @grafana/schema leaves to the plugins: public/app/plugins/panel/alertlist/types.ts (UnifiedAlertListOptions),
// and the query and the annotation of the data source Prometheus.
export interface Options_alertlist {
  alertInstanceLabelFilter: string;
  alertName: string;
  dashboardAlerts: boolean;
  datasource: string;
  groupBy: string[];
  groupMode: "default" | "custom";
  maxItems: number;
  showInactiveAlerts: boolean;
  sortOrder: 1 | 2 | 3 | 4 | 5;
  stateFilter: Record<"firing" | "pending" | "noData" | "normal" | "error", boolean>;
  viewMode: "list" | "stat";
}

export interface Question {
  datasource: { type: "prometheus"; uid: string };
  editorMode?: "code" | "builder";
  exemplar?: boolean;
  expr: string;
  format?: "time_series" | "table" | "heatmap";
  hide?: boolean;
  instant?: boolean;
  interval?: string;
  legendFormat?: string;
  range?: boolean;
  refId: string;
}

export interface Moment {
  expr: string;
  step: string;
  textFormat: string;
  titleFormat: string;
  useValueForTime: boolean;
}
